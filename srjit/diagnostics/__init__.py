"""Looks at programs that run: verify, watch, replay, dumps."""
