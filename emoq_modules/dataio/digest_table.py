"""A table from digests to values that takes few bytes an entry."""

import numpy as np

# Digests added one by one are found by hashing until there are so many that
# sorting them in pays; a share of the others, so that its cost stays linear.
_FEW = 1000
_SHARE = 0.5


class DigestTable:
    """A mapping from digests of 16 bytes to values of one type.

    Takes 16 bytes a digest and those of its value, where a ``dict`` takes some
    200; and reading it writes nothing, so that forked processes share it.

    Arguments
    ---------
    keys : np.ndarray
        Digests, ``(N,)``, S16, in ascending order. May be mapped from a file.
    values : np.ndarray
        ``(N,)``, of any type, a structured one too.

    Example
    -------
    >>> table = DigestTable.empty("uint32")
    >>> digests = digest_array(["00" * 15 + "07", "00" * 15 + "08"])
    >>> table.update(digests[:1], np.array([7]))
    >>> int(table.get(digests[0])), table.get(digests[1]), len(table)
    (7, None, 1)
    >>> table.get_all(digests[::-1], 0)
    array([0, 7], dtype=uint32)
    """

    def __init__(self, keys, values):
        self.keys = keys
        self.values = values
        self._new = {}

    @classmethod
    def empty(cls, value_type):
        """Makes a table without entries.

        Arguments
        ---------
        value_type : str or np.dtype
            Type of the values.

        Returns
        -------
        DigestTable
            The table, to be filled by ``update``.
        """
        return cls(np.empty(0, "S16"), np.empty(0, value_type))

    def __len__(self):
        return len(self.keys) + len(self._new)

    def get(self, key):
        """Looks up the value of a digest.

        Arguments
        ---------
        key : bytes
            The digest, 16 bytes; zeros at its end may be left out.

        Returns
        -------
        object | None
            The value, as a scalar of numpy's or as ``tolist`` gives it; None
            if the digest is not in the table.
        """
        key = key.rstrip(b"\0")  # numpy leaves the zeros at the end out
        if key in self._new:
            return self._new[key]
        place = self.keys.searchsorted(key)
        if place == len(self.keys) or self.keys[place] != key:
            return None
        return self.values[place]

    def get_all(self, keys, default):
        """Looks up the values of many digests.

        Arguments
        ---------
        keys : np.ndarray
            Digests, ``(N,)``, S16, in any order.
        default : object
            The value of digests that are not in the table.

        Returns
        -------
        np.ndarray
            A value for each, ``(N,)``, of the table's type.
        """
        self.merge()
        values = np.full(len(keys), default, self.values.dtype)
        if len(self.keys):
            order = np.argsort(keys)  # searched for in order: no cache misses
            places = self.keys.searchsorted(keys[order])
            places[places == len(self.keys)] = 0
            found = self.keys[places] == keys[order]
            values[order[found]] = self.values[places[found]]
        return values

    def update(self, keys, values):
        """Adds digests with their values; those already there keep theirs.

        Arguments
        ---------
        keys : np.ndarray
            Digests, ``(N,)``, S16, in any order.
        values : np.ndarray
            A value for each, ``(N,)``, of the table's type.
        """
        if len(keys) > _FEW:
            self.merge(DigestTable(keys, values))
            return
        for key, value in zip(keys.tolist(), values.tolist(), strict=True):
            if self.get(key) is None:
                self._new[key] = value
        if len(self._new) > max(_FEW, _SHARE * len(self.keys)):
            self.merge()

    def merge(self, other=None):
        """Sorts in what was added, and the entries of another table.

        Arguments
        ---------
        other : DigestTable | None
            The other table; digests that are in both keep this one's value.
        """
        keys, values = [self.keys], [self.values]
        keys.append(np.array([*self._new], "S16"))
        values.append(np.array([*self._new.values()], self.values.dtype))
        if other is not None:
            keys.append(other.keys)
            values.append(other.values)
        if not any(map(len, keys[1:])):
            return
        # The first of equal digests is kept.
        self.keys, first = np.unique(np.concatenate(keys), return_index=True)
        self.values = np.concatenate(values)[first]
        self._new = {}


def digest_array(digests):
    """Makes an array of digests from their hexadecimal digits.

    Arguments
    ---------
    digests : iterable of str
        32 digits each.

    Returns
    -------
    np.ndarray
        The digests, ``(N,)``, S16.
    """
    return np.frombuffer(bytes.fromhex("".join(digests)), "S16")
