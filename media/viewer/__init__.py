"""A web page on which heads are turned, mixed and saved while this program renders them.

`view_renderer` renders, `controls` and `camera` read what a page sends, `session` keeps one page's
picture up to date, `server` starts sessions, `gateway` decides what reaches them, `checkpoints` and
`downloads` are what a page may load and save.
"""
