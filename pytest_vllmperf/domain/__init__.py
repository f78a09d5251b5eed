"""The pure part: what is measured, how it is computed and how it is judged. No I/O, no clock."""
