"""Volume rendering of tri-plane features. A decoder is any callable; nothing here knows networks or
files.
"""
