"""Scores, plans and evaluations as a page or a picture."""
