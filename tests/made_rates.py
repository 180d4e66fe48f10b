"""Made-up rates by the phrase rules, with the error that ships."""

from __future__ import annotations

from refusal_cliff.answers.correction import judged_rates, known_error
from refusal_cliff.stats import Share

JUDGED = judged_rates("rules", known_error("rules"), {"attack success": (Share(124, 200), 198)})
