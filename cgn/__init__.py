"""Counterfactual Generative Networks (Sauer and Geiger, ICLR 2021), each step a script: `python -m cgn.STEP`.

data            the three variants of MNIST, in which colour or texture gives the class away
mechanisms      shape, texture, background, their composition; discriminators; the conditional GAN
losses          what a mechanism is trained by
abduction       the shape in a given image, found without a label of a single pixel
train           trains a CGN or the conditional GAN into runs/cgn_*
generate        samples, counterfactual sets of any size, interpolations, sheets
classify        classifiers on real, generated and counterfactual images
explain         GradCAM against true masks, t-SNE of features
analyse         which loss is needed, which mechanism answers to which label
"""
