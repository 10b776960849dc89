"""The COVID-19 tables: reading and features."""
