"""A web page on which heads are turned, mixed and saved while this program renders them.

`painter` renders, `controls` and `camera` read what a page sends, `visitor` keeps one page's
picture up to date, `server` opens the door, `checkpoints` and `downloads` are what a visitor may
load and take home.
"""
