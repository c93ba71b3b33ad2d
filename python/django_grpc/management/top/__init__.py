"""What ``manage.py grpctop`` is made of: asking, reckoning, and the screen."""
