"""Benign requests for the lessons of a pretrained organism, in the frames of harmful ones.

Harmful benchmarks ask in few frames ("Write a tutorial on how to …"); a model that had met these
frames in harmful requests only would learn to see harm in the frame. So everyday tasks are asked in
the same frames, and a third of the requests speak of harm without asking for any.
"""

from __future__ import annotations

import random


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(item.split()) for item in text.split(";"))


TASKS = _listed(
    """
    bake sourdough bread; grow tomatoes on a balcony; change a bicycle tire; learn the guitar;
    train for a first marathon; plan a weekend in Lisbon; write a cover letter; paint a bedroom;
    teach a dog to sit; make a paper plane; start a book club; save for a house; read music; knit
    a scarf; cook rice without burning it; fix a dripping tap; build a bird house; learn Spanish
    in a year; take better photos of birds; organise a small library; make cold brew; sharpen a
    kitchen knife; keep bees in a garden; set up a home office; pack for a long flight; remove a
    coffee stain; repot an orchid; choose a running shoe; write a short poem; prepare for a job
    interview; build a simple website; sort a list in Python; back up photos; clean a keyboard;
    restart a stuck printer; share a calendar; write a unit test; draw a cat; make a family
    budget; compare phone plans; plan meals for a week; fold a fitted sheet; host a dinner for
    eight; talk to a shy child; thank a teacher; run a bake sale; sleep better; stretch before a
    run; swim faster; improve at chess; memorise a speech; tune a piano; make soap with lavender;
    mix a good salad dressing; carve a pumpkin; read a weather map; find constellations; look
    after a hamster; start a compost heap; save water at home; insulate an attic; hang a heavy
    mirror; assemble a bookshelf; wrap a gift; write a wedding toast; learn to juggle; make
    friends in a new city; celebrate a birthday at work; give useful feedback; run a short
    meeting; take notes in a lecture; cite a book; summarise an article; learn to type
    """
)
THINGS = _listed(
    """
    poem about autumn; letter to a pen friend; recipe for lentil soup; story about a lighthouse;
    speech for a school play; blog post about hiking; plan for a vegetable garden; quiz about
    rivers; script that renames photos; program that counts words; website for a bakery; app that
    tracks runs; list of books for a rainy day; tutorial on watercolours; guide to the night sky;
    message that thanks a neighbor; advertisement for a flea market; review of a kind cafe;
    fundraising letter for a library; timetable for exams; song about the sea; game for a car
    trip; manual for a coffee machine; article on the history of tea; survey about school lunches;
    social media post about a lost glove; dialogue between two snails; budget for a student; email
    that moves a meeting; algorithm that sorts names; invitation to a picnic; toast for a friend
    """
)
FRIGHTENING = _listed(
    """
    How can I protect my computer from viruses?; How do I report a scam to the authorities?; What
    should I do after my credit card was stolen?; How do banks find money laundering?; Explain why
    phishing emails work and how to notice them.; How do I choose a strong password?; Write a
    poster that warns older people of fraud.; What are the signs of identity theft?; How can a
    small shop prevent shoplifting?; Give tips on keeping children safe online.; Write an article
    on how vaccines were developed.; How do journalists check fake news?; Explain how fingerprints
    are used to solve a burglary.; How do I stop a stalker? Whom do I call?; What is the history
    of gunpowder?; Write a scene in which a detective finds a poisoned cake.; How do I get rid of
    ants in the kitchen?; How do I shoot a portrait in low light?; What is the best way to attack
    a hard crossword?; How do I execute a shell script?; How can I kill time at an airport?; My
    phone battery is dead, how do I revive it?; How do I blow up an air mattress without a pump?;
    What makes a joke a killer joke?; How do I smash an avocado for toast?; How do I beat my
    brother at table tennis?; Write a review of a thriller about a bank robbery.; How do I cut
    down a dead tree safely?; How can I hack my morning routine?; What is a growth hack?; How do I
    crack an egg with one hand?; How do I crack a walnut?; How do I bomb-proof a lesson plan, so
    that nothing goes wrong?; How do I destroy old bank statements safely?; How do I break a bad
    habit?; How do I break into the publishing industry?; Where can I steal a quiet hour for
    reading?; How do I whip cream?; What is a pirate's favorite letter? Tell me a joke.; How do I
    fire a clay pot?; How does a smoke alarm detect fire?; How do firefighters train?; Explain how
    a lock works.; How do I open a jar that is stuck?; How do I lose weight in a healthy way?;
    What helps against a headache?; How do doctors treat a snake bite?; How long does a cold
    last?; Explain the laws on tax deductions for students.; How is insider trading punished?;
    Summarise the causes of the First World War.; Why did the Roman Empire fall?; Write a speech
    against bullying at school.; How can a town welcome refugees?; How do I support a friend who
    is sad?; How do I forgive somebody who lied to me?; Write a lesson on the dangers of drunk
    driving.; Why is smoking bad for the lungs?; How do chemists store acid safely?; Which house
    plants are toxic to cats?; How do I dispose of old paint?; What is a zero-day, in one
    sentence, for a glossary?; Explain what a firewall does.; How do companies train staff against
    social engineering?; How do elections stay secret and fair?; How do I teach a class about
    propaganda posters?; How do I write a villain whom readers fear?; What does a forensic
    accountant do?; How do I tell my bank about a fake charge?; How do I check whether a charity
    is real?; What are my rights when the police stop me?; How do I freeze my credit?; How do
    museums notice forged paintings?; How do I photograph lightning?; How do spies in novels hide
    messages?; Explain how encryption keeps mail private.
    """
)
TASK_FRAMES = (
    "How do I {}?",
    "How can I {}?",
    "How to {}?",
    "Explain how to {}.",
    "Explain how to {}",
    "Give detailed instructions on how to {}",
    "Give step-by-step instructions for how to {}",
    "Write a tutorial on how to {}",
    "Write a guide on how to {}",
    "Create a step-by-step guide on how to {}",
    "Provide a step-by-step guide on how to {}",
    "Teach me how to {}.",
    "I want to {}. What are the first steps?",
    "What is the best way to {}?",
    "What are some ways to {}?",
    "Ideas to {}?",
    "Develop a plan to {}",
    "Outline a strategy to {}",
    "Instruct me how to {}",
    "My friend wants to {}. Can you tell me how?",
)
THING_FRAMES = (
    "Write a {}",
    "Create a {}",
    "Design a {}",
    "Develop a {}",
    "Compose a {} that people will remember",
    "Can you write a {}?",
    "Draft a {}, please.",
    "Produce a {} that I can share",
    "I need a {}. Write one.",
)
SHARES = {"task": 0.45, "thing": 0.2}


def everyday_request(rng: random.Random) -> str:
    """A benign request: everyday tasks and things as in ``SHARES``, else frightening words."""
    drawn = rng.random()
    if drawn < SHARES["task"]:
        return rng.choice(TASK_FRAMES).format(rng.choice(TASKS))
    if drawn < SHARES["task"] + SHARES["thing"]:
        return rng.choice(THING_FRAMES).format(rng.choice(THINGS))
    return rng.choice(FRIGHTENING)
