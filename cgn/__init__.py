"""Counterfactual Generative Networks (Sauer and Geiger, ICLR 2021), each step a script: `python -m cgn.STEP`.

On MNIST, made of
data            the three variants, in which colour or texture gives the class away
mechanisms      shape, texture, background, their composition; discriminators; the conditional GAN
losses          what a mechanism is trained by, here and at the scale of ImageNet
abduction       the shape in a given image, found without a label of a single pixel
games           a training step of a generator
classifiers     what learns from images, and its training; readers: those that measure mechanisms
sets            counterfactuals on the disk
in these steps:
train           trains a CGN or the conditional GAN into runs/cgn_*
generate        samples, counterfactual sets of any size, interpolations, sheets
classify        classifiers on real, generated and counterfactual images
explain         GradCAM against true masks, t-SNE of features
analyse         which loss is needed, which mechanism answers to which label
bench           speed

At the scale of ImageNet, made of
objects64       the made set; silhouettes: five of its shapes
biggan          the generator, also the published one; discriminator: what it is trained against
u2net           saliency, also the published networks
objects         three BigGANs and a U2-Net as a CGN, and its losses
ensemble        a classifier with a head for shape, texture and background
folders         images of ImageNet and other sets; imagenet: its classes in their groups
scores          Inception Score, shape bias, accuracies
sound           beats and loudness
in these steps:
fetch           what others have published, and where it goes
train_gan       a BigGAN from zero
train_saliency  a U2-Net on images with masks
train_objects   the CGN, out of the two
generate_objects  sheets, films, counterfactual sets
train_ensemble  classifiers on real images and counterfactuals
evaluate        what they read: shape bias, BG-gap, accuracies
score_objects   what a CGN is worth, with each loss and without it
dance, stylise  a walk to the beats of a tune; an image in the style of generated textures
bench_objects   speed

plan, report    the commands and tables of README; plan_objects, report_objects: those at the scale of ImageNet
"""
