"""Handlers do work and report back; they never record."""
