"""Nets that several image tokenizers share. Modules here import torch and hold no operators."""
