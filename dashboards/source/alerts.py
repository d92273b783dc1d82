"""x"""

RULES = {}
