"""Operators: the model code of Tokenmill. Knows nothing of pipeline, ray or storage."""
