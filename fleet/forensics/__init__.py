"""The questions an incident asks, as SQL with a name: one file each in questions/, documented by its head."""
