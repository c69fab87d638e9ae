"""Tokenmill's engine: plans, runs, commits and reads tokenized data sets."""
