"""What dataset_tool.py does: built-in data, and later the conversion, checking and mirroring of
other data.
"""
