"""Doors to other people's programs: each adapter imports what it needs, and nothing of ours imports an adapter."""
