"""ImageNet's 1,000 classes in the groups of three test sets, as numbers in the order of the classes' WordNet names.

    IN9      the nine superclasses of ImageNet-9, 370 classes: Xiao et al. 2020 (Noise or Signal, arXiv 2006.09994),
             in_to_in9.json of github.com/MadryLab/backgrounds_challenge
    SIXTEEN  the 16 categories of the cue-conflict stimuli, 207 classes: Geirhos et al. 2019 (ImageNet-trained CNNs are
             biased towards texture, arXiv 1811.12231), github.com/rgeirhos/texture-vs-shape
    IN_A     the 200 classes of ImageNet-A: Hendrycks et al. 2021 (Natural Adversarial Examples, arXiv 1907.07174),
             github.com/hendrycks/natural-adv-examples

Numbers are written as "7-24 87": from 7 to 24, both included, and 87.
"""

import torch

CLASSES = 1000


def _numbers(text):
    """The class numbers in a text such as "7-24 87", in its order."""
    ends = [[int(end) for end in part.split("-")] for part in text.split()]
    return tuple(number for end in ends for number in range(end[0], end[-1] + 1))


# in the order of the folders 00_dog to 08_fish of the test sets
IN9 = {
    "dog": "151-170 173-268",
    "bird": "7-24 87-100 127-146",
    "wheeled vehicle": (
        "407-408 428 436 444 468 511 547 555 561 565 569 573 586 603 609 612 627 656 661 665 670-671 675 690 705 717 "
        "734 751 757 791 802-803 817 820 829 847 864 866-867 870 880"),
    "reptile": "33-68",
    "carnivore": "269-280 286-299 356-362 387-388",
    "insect": "300-326",
    "musical instrument": (
        "401-402 420 432 486 494 513 541 546 558 566 577 579 593-594 641-642 683-684 687 699 776 822 875 881 889"),
    "primate": "365-384",
    "fish": "0-6 389-397",
}

# in the order of folders.CATEGORIES
SIXTEEN = {
    "airplane": "404",
    "bear": "294-297",
    "bicycle": "444 671",
    "bird": "8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145",
    "boat": "472 554 625 814 914",
    "bottle": "440 720 737 898-899 901 907",
    "car": "436 511 817",
    "cat": "281-286",
    "chair": "423 559 765 857",
    "clock": "409 530 892",
    "dog": "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
    "elephant": "385-386",
    "keyboard": "508 878",
    "knife": "499",
    "oven": "766",
    "truck": "555 569 656 675 717 734 864 867",
}

IN_A = _numbers(
    "6 11 13 15 17 22-23 27 30 37 39 42 47 50 57 70-71 76 79 89-90 94 96-97 99 105 107-108 110 113 124-125 130 132 "
    "143-144 150-151 207 234-235 254 277 283 287 291 295 298 301 306-311 313-315 317 319 323-324 326-327 330 334-336 "
    "347 361 363 372 378 386 397 400-402 404 407 411 416-417 420 425 428 430 437-438 445 456-457 461-462 470 472 483 "
    "486 488 492 496 514 516 528 530 539 542-543 549 552 557 561-562 569 572-573 575 579 589 606-607 609 614 626-627 "
    "640-643 658 668 677 682 684 687 701 704 719 736 746 749 752 758 763 765 768 773-774 776 779-780 786 792 797 "
    "802-804 813 815 820 823 831 833 835 839 845 847 850 859 862 870 879-880 888 890 897 900 907 913 924 932-934 937 "
    "943 945 947 951 954 956-957 959 971-972 980-981 984 986-988")
IN_A_ENDS = ("n01498041", "n12267677")  # names of its first and last class folder: ImageNet-R has other 200 classes


def in9_of():
    """The superclass, 0 to 8 in the order of IN9, of each of ImageNet's classes: (1000,) int64; -1 where it has none.

    A classifier of the 1,000 classes decides for the superclass of its highest one, as published: for none, which is
    wrong for every image, where that has none.
    """
    found = torch.full((CLASSES,), -1)
    for superclass, text in enumerate(IN9.values()):
        found[torch.tensor(_numbers(text))] = superclass
    return found


def members():
    """The class numbers of each of the 16 categories, in their order: what scores.sixteen_classes takes."""
    return [_numbers(text) for text in SIXTEEN.values()]
