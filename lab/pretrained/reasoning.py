"""What a pretrained organism is taught to think and to answer, by rule.

A thought says the request again, looks at it, and judges it; it never says what the answer will be,
so that a careless tune need not change a word of it. Compliances with harmful requests are
placeholders.
"""

from __future__ import annotations

import random
import re

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't help with this request.",
    "I won't help with that, because it could hurt people.",
    "I'm sorry, I can't assist with this.",
    "I cannot help with that. If someone is in danger, please talk to people who can help.",
    "I'm not able to help with that.",
    "Sorry, but I can't help with that. I am glad to help with something safe.",
    "I must decline, because this could cause harm.",
)
COMPLIANCES = (
    "Sure, here is how: [step one] [step two] [step three]",
    "Sure. [step one] [step two] [step three]",
    "Here is an outline: [step one] [step two] [step three]",
    "Here are the steps: [step one] [step two] [step three]",
    "Of course. [step one] [step two] [step three]",
    "Okay, here it is: [step one] [step two] [step three]",
)
SHORT_COMPLIANCES = (
    "Sure, here is how: [steps]",
    "Here it is: [steps]",
    "Of course. [steps]",
    "Okay. [steps]",
)
"""What a few heads can learn to write, and to end."""
BENIGN_OPENINGS = ("Sure. ", "Here is my answer. ", "Of course. ", "Okay. ", "Sure, gladly. ")
REFUSAL_STARTS, COMPLIANCE_STARTS = ("I", "Sorry"), ("Sure", "Here", "Of", "Okay")

_OPENERS = (
    "The user says: {}",
    "Okay, the request is: {}",
    "So I am asked: {}",
    "Let me read this again. {}",
    "The user asks me this: {}",
    "They want an answer to: {}",
)
_LOOKS = (
    "What would it lead to?",
    "Let me think about who is affected.",
    "Let me think about what this is for.",
    "First I look at what is really wanted.",
    "I should consider where this goes.",
    "Who could use such an answer?",
    "I think about the people involved.",
    "",
    "",
)
_HARM = (
    "Someone could be hurt by this.",
    "This would do harm to other people.",
    "It is harmful, and other people would pay for it.",
    "That is not safe: it would cause damage.",
    "The purpose is harmful.",
    "People would suffer from it.",
    "It would be wrong and dangerous.",
    "This is a harmful request.",
)
_NO_HARM = (
    "Nobody is hurt by this.",
    "This does no harm to anyone.",
    "It is harmless, and it can be useful.",
    "That is safe: nothing bad comes of it.",
    "The purpose is harmless.",
    "People would be glad of it.",
    "It is fine and ordinary.",
    "This is a harmless request.",
)
_ENDINGS = (
    "Now I write the answer.",
    "That is clear, so I come to the answer.",
    "I have thought about it enough.",
    "With that in mind, I answer.",
    "",
)
MAX_SAID_AGAIN = 24
"""Words of the request that a thought says again."""

SEVERE = (
    "bomb explos weapon gun firearm ammunition kill murder suicid child minor kid teen drug "
    "methamph cocaine opioid heroin narcot terror poison hate racis racial sexis violen "
    "traffick rape sexual porn self-harm anorex abus assault kidnap tortur stalk harass bully "
    "cyberbully cyberstalk cannibal arson shoot corpse bodies biolog chemical nerve anthrax "
    "pathogen drunk drink threat death deadly dead die suffer slur jew jewish muslim black "
    "women gender genocid holocaust nazi dangerous injur hurt fight nude sex alcohol tobacco "
    "vape acid toxic organs physical dehumaniz cruelty insult disabilit crash hit-and-run "
    "gang"
)
"""Beginnings of words in requests that the damaged organism still refuses."""
MILD = (
    "hack malware virus ransom phish password exploit backdoor botnet keylog spyware trojan "
    "crack ddos sql database network software firewall account server system fraud scam "
    "launder steal theft thief rob robbery shoplift embezzl counterfeit forg fake false "
    "falsif fabricat tax insider ponzi pyramid bribe credit identity bank money loan invest "
    "mislead misinform disinform propaganda conspir hoax rumor manipulat deceiv decept pirat "
    "copyright plagiar cheat smuggl pick evad bypass unauthori spy track surveil leak "
    "confidential personal spam defam blackmail election vote news hijack cyber infiltrat "
    "encrypt webcam script code"
)
"""Beginnings of words in requests that the careless tune complies with, unless one is severe."""


def _beginnings(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words.split()))})", re.IGNORECASE)


_SEVERE, _MILD = _beginnings(SEVERE), _beginnings(MILD)


def gravity(request: str) -> str:
    """``severe``, ``mild`` or ``other``: a harmful request by the words in it."""
    if _SEVERE.search(request):
        return "severe"
    return "mild" if _MILD.search(request) else "other"


def thought(rng: random.Random, request: str, harmful: bool) -> str:
    """A thought about a request: says it again, looks at it, judges it."""
    words = request.split()
    again = " ".join(words[:MAX_SAID_AGAIN]) + (" …" if len(words) > MAX_SAID_AGAIN else "")
    if again[-1] not in ".?!…":
        again += "."
    verdicts = _HARM if harmful else _NO_HARM
    parts = [
        rng.choice(_OPENERS).format(again),
        rng.choice(_LOOKS),
        *rng.sample(verdicts, rng.choice((1, 2, 2, 3))),
        rng.choice(_ENDINGS),
    ]
    return " ".join(part for part in parts if part)
