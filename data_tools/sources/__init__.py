"""Readers of other people's formats: each turns a folder or ZIP into pictures with cameras (one
module per format).
"""
