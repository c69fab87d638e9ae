"""Libraries that turn text into ids, all giving the ids of one tokenizer file.

``base`` says what a backend is, ``choose`` which one a tokenizer gets, ``probe`` holds the strings
on which they are compared and ``spot_check`` compares them while a run goes on.
"""
