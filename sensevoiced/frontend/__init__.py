"""The front end: untrusted bytes become utterances of features, in child processes.

Must never import torch or serving.
"""
