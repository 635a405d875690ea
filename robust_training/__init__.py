"""Part 6: robust training by counterfactual and invariant data generation (Chang, Adam and Goldenberg, CVPR 2021).

    batch.py       images with their labels, places, foreground masks and boxes
    digits.py      the embedded set: digits on textured grounds that agree with the label in training
    formats.py     the published sets (IN-9, IN-9L, Waterbirds, CCT) as lists of samples; photos.py reads their pixels,
                   fetch.py gets what is public of them
    data.py        every set by its name, and how it is trained on
    augment.py     counterfactual infills of the foreground, factual swaps of the background
    inpainter.py   the network that paints over a foreground; inpaint.py trains it
    losses.py      of labels, counterfactuals and groups
    saliency.py    penalties on what a classifier looks at, and the attributions behind them
    objective.py   one step: which images a batch becomes, and the loss on them
    fitting.py     the training loop
    measure.py     metrics; evaluate.py takes them of a trained classifier
    train.py       python -m robust_training.train
    plan.py        the runs behind README; report.py and show.py make their tables and figures
    bench.py       speed of the augmentation
"""
