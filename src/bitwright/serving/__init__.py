"""Serving: answers of a model over HTTP, in the shape of OpenAI's API.

:mod:`bitwright.serving.engine` answers wishes in one thread and knows no HTTP; the other modules translate.
"""
