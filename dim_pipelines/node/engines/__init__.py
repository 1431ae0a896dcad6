"""Engines: what runs a model, inside the engine process and nowhere else.

An engine implements `engine.Engine`; heavy libraries are imported by its module only after the process is confined.
"""
