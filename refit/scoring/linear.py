"""A linear classifier that judges only what it has not seen: for label errors, and for what tells two sets apart.

    probabilities = out_of_fold(features, labels, clusters, num_classes, seed=17)      (n, num_classes)

Multinomial logistic regression on standardised features, fitted on all folds but one and asked about that one.
"""

import warnings

import numpy as np

FOLDS = 5
_STRENGTH = 0.01
"""scikit-learn's C, the inverse of the L2 penalty. Chosen among 1, 0.1, 0.01 and 0.001 by planted label errors on
digits and clothes: a weaker penalty learns the wrong labels by heart, a stronger one no longer tells classes apart."""
_MOST_STEPS = 100


def out_of_fold(
    features: np.ndarray, labels: np.ndarray, clusters: np.ndarray, num_classes: int, seed: int
) -> np.ndarray:
    """Probabilities for each row, from a model that was fitted without it and without any row of its cluster.

    Args:
        features: (n, d), finite.
        labels: (n,) int64 in [0, num_classes), of two classes or more.
        clusters: (n,) int64, as `clusters.numbered` gives them.
        seed: of the folds, into which the clusters of each class are dealt out evenly.

    Returns:
        (n, num_classes) float64. A class that no other fold has gets 0.
    """
    from sklearn.linear_model import LogisticRegression  # here: a second, which most processes need not wait
    from threadpoolctl import threadpool_limits

    folds = _folds(labels, clusters, seed)
    probabilities = np.zeros((len(labels), num_classes))
    features = _standardised(features)
    with threadpool_limits(1), warnings.catch_warnings():  # other threads, other last bits
        warnings.simplefilter("ignore")  # where the steps do not suffice, more would change little
        for fold in range(FOLDS):
            fitted, asked = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            classes = np.unique(labels[fitted])
            if len(classes) < 2 or not len(asked):
                probabilities[np.ix_(asked, classes)] = 1.0
                continue
            model = LogisticRegression(C=_STRENGTH, max_iter=_MOST_STEPS).fit(features[fitted], labels[fitted])
            probabilities[np.ix_(asked, classes)] = model.predict_proba(features[asked])
    return probabilities


def _folds(labels: np.ndarray, clusters: np.ndarray, seed: int) -> np.ndarray:
    """(n,) int64: the fold of each row. A cluster counts as of the class of its first row."""
    labels = labels[np.unique(clusters, return_index=True)[1]]
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    dealt = shuffled[labels[shuffled].argsort(kind="stable")]
    folds = np.empty(len(labels), dtype=np.int64)
    folds[dealt] = np.arange(len(labels)) % FOLDS
    return folds[clusters]


def _standardised(features: np.ndarray) -> np.ndarray:
    """Each column with mean 0 and deviation 1; one that says nothing is 0. No label is looked at."""
    features = features.astype(np.float64)
    centred = features - features.mean(axis=0)
    deviation = centred.std(axis=0)
    return np.asarray(centred / np.where(deviation > 0, deviation, 1.0))
