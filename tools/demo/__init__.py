"""The parts of tools/train_demo.py: how the demo model is made and measured."""
