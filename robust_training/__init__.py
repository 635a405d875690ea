"""Part 6: robust training by counterfactual and invariant data generation (Chang, Adam and Goldenberg, CVPR 2021).

    batch.py       images with their labels, places, foreground masks and boxes
    digits.py      the embedded set: digits on textured grounds that agree with the label in training
    data.py        the published sets (IN-9, IN-9L, Waterbirds, CCT) and every set by its name
    augment.py     counterfactual infills of the foreground, factual swaps of the background
    saliency.py    penalties on what a classifier looks at, and the attributions behind them
    train.py       python -m robust_training.train
"""
