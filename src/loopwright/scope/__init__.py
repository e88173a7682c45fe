"""Stage 1: the problem, the stakeholders' objectives, the budget, the rule to beat, and the ladder that starts from it."""
