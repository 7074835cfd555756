"""The metric in which features are perturbed and their density is taken.

A perturbation of shape Sigma = L L^T is isotropic for the features u = L^-1 z: the
feature matrix is ``L A L^-1`` with A = r O, O Haar on O(m), so that

    xi = L A u,    E[xi xi^T] = E[r^2] ||u||^2 / m * Sigma.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from sklearn.covariance import ledoit_wolf

from sklearn_relflat._density.radial_kernels import array_module

SHAPES = ("isotropic", "within_class", "covariance")


@dataclass(frozen=True, eq=False)
class FeatureMetric:
    """Square root of a covariance; None is the Euclidean metric.

    Attributes
    ----------
    shape : str
        One of `SHAPES`.
    root : ndarray of shape (n_features, n_features) or None
        The lower triangular L.
    """

    shape: str
    root: np.ndarray | None = None

    @classmethod
    def fit(cls, Z: np.ndarray, shape: str, labels: Any = None) -> FeatureMetric:
        """Estimate the covariance of a shape, shrunk as Ledoit and Wolf do.

        Parameters
        ----------
        Z : ndarray of shape (n_samples, n_features)
            Features.
        shape : str
            One of `SHAPES`.
        labels : array-like of shape (n_samples,), default=None
            Classes, for "within_class".

        Returns
        -------
        metric : FeatureMetric
            The metric.

        Raises
        ------
        ValueError
            If the shape is unknown, labels are missing, or the features have no
            covariance that can be inverted.
        """
        if shape not in SHAPES:
            raise ValueError(f"Expected shape to be one of {SHAPES}, got {shape!r}.")
        if shape == "isotropic":
            return cls(shape)
        centred = Z - Z.mean(axis=0)
        if shape == "within_class":
            centred = Z - _class_means(Z, labels)
        covariance, _ = ledoit_wolf(centred, assume_centered=True)
        try:
            root = cholesky(covariance, lower=True)
        except LinAlgError as error:
            raise ValueError(
                f"Expected features with a covariance that can be inverted for "
                f"shape={shape!r}, got {Z.shape[0]} samples of {Z.shape[1]} features "
                "that do not vary enough. Use shape='isotropic'."
            ) from error
        return cls(shape, root)

    def whitened(self, Z: Any) -> Any:
        """Features u = L^-1 z, one a row.

        Parameters
        ----------
        Z : {ndarray, Tensor} of shape (n_samples, n_features)
            Features.

        Returns
        -------
        U : {ndarray, Tensor} like Z
            Features in which the perturbation is isotropic.
        """
        if self.root is None:
            return Z
        xp = array_module(Z)
        if xp is np:
            return solve_triangular(self.root, Z.T, lower=True).T
        root = xp.as_tensor(self.root, dtype=Z.dtype, device=Z.device)
        return xp.linalg.solve_triangular(root, Z.T, upper=False).T

    def coloured(self, U: Any) -> Any:
        """Perturbations L u, one a row, in place of those of the whitened features.

        Parameters
        ----------
        U : {ndarray, Tensor} of shape (n_samples, n_features)
            Rows in the whitened space.

        Returns
        -------
        Z : {ndarray, Tensor} like U
            Rows in the space of the features.
        """
        if self.root is None:
            return U
        xp = array_module(U)
        if xp is np:
            return U @ self.root.T
        return U @ xp.as_tensor(self.root, dtype=U.dtype, device=U.device).T

    def coloured_transposed(self, W: Any) -> Any:
        """Rows w L of weights w that act on coloured perturbations.

        Parameters
        ----------
        W : Tensor of shape (n_neurons, n_features)
            Weights.

        Returns
        -------
        rows : Tensor like W
            Weights that act on the whitened perturbations.
        """
        if self.root is None:
            return W
        return W @ array_module(W).as_tensor(self.root, dtype=W.dtype, device=W.device)


def _class_means(Z: np.ndarray, labels: Any) -> np.ndarray:
    """Mean of the class of each sample."""
    if labels is None:
        raise ValueError(
            "Expected labels for shape='within_class', got None. Pass y, or use "
            "shape='isotropic'."
        )
    labels = np.asarray(labels)
    if labels.shape != (len(Z),):
        raise ValueError(
            f"Expected one class for each of {len(Z)} samples for "
            f"shape='within_class', got y of shape {labels.shape!r}. Use "
            "shape='isotropic' where targets are no classes."
        )
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) == len(labels):
        raise ValueError(
            f"Expected classes of several samples for shape='within_class', got "
            f"{len(classes)} different labels of {len(labels)} samples. Use "
            "shape='isotropic' for regression."
        )
    sums = np.zeros((len(classes), Z.shape[1]))
    np.add.at(sums, codes, Z)
    return (sums / counts[:, None])[codes]
