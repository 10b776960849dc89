"""Callbacks shared by all homeworks; they know no homework."""
