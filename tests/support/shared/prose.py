"""Shared by tests of several folders."""

from __future__ import annotations

PROSE = """\
The lighthouse keeper had lived on the island for eleven years, and in all that time he had never once been
late to light the lamp. Every evening, an hour before the sun went down, he climbed the two hundred and four
steps, cleaned the glass with a soft cloth, and checked the oil. Then he sat by the window and waited. On
clear nights he could see the lights of the fishing boats far out on the water, moving slowly like low
stars. On stormy nights he saw nothing at all, only the white line of the waves and the rain on the glass.

One morning in the spring a small boat came to the island. A young woman stepped out of it with a heavy bag
and a letter. The letter said that the lamp would soon be replaced by an electric light, that it would turn
itself on and off without any help, and that the keeper could go home. He read the letter twice. Then he
folded it, put it in his pocket, and asked the woman whether she would like a cup of tea.

They drank the tea in the kitchen. She told him that she was an engineer, and that the new light was very
simple. It had a sensor that measured how dark it was, and a battery that was charged by the sun during the
day. He listened carefully and asked good questions. When she had finished, he showed her the book in which
he had written down the weather of every single day since he had arrived: the direction of the wind, the
height of the waves, the temperature of the air and of the sea. She turned the pages for a long time. "This
is worth more than the lamp," she said.
"""
