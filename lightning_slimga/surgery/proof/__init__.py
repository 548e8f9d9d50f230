"""Prove the labels on the network itself: run it masked, run it shrunk, compare.

- ``proof``: tries random cuts of all layers and freezes what goes wrong.
- ``trial``: one mask on one network.
- ``lockstep``: the shrunk network runs the ops of the full one, with predicted shapes.
- ``comparison``: outputs, and what each op returns.
"""
