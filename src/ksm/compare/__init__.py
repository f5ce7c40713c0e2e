"""Comparisons: protocols, rows, a file a cell, tables and pictures."""
