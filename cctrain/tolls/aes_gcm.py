"""AES-256-GCM on one CPU thread, OpenSSL's: with CC on, what crosses between CPU and GPU is sealed so in software."""

from __future__ import annotations

import ctypes
import os
from ctypes.util import find_library

from cctrain.tolls.host import seconds
from cctrain.tolls.record import Reading
from cctrain.tolls.sampling import Case, Switch, measure_cases

_BUDGET_S = 0.6
_BYTES = 1 << 20
_CALLS = 8


def can_run() -> str | None:
    """None, or that there is no OpenSSL to call."""
    return None if find_library("crypto") else "needs OpenSSL's libcrypto, none is found"


def measure(switch: Switch | None = None) -> list[Reading]:
    """The rate of sealing a buffer again and again, each time with the same nonce: it is thrown away."""
    library = ctypes.CDLL(find_library("crypto"))
    library.EVP_CIPHER_CTX_new.restype = library.EVP_aes_256_gcm.restype = ctypes.c_void_p
    context, cipher = ctypes.c_void_p(library.EVP_CIPHER_CTX_new()), ctypes.c_void_p(library.EVP_aes_256_gcm())
    key, nonce = os.urandom(32), os.urandom(12)
    plain, sealed, length = os.urandom(_BYTES), ctypes.create_string_buffer(_BYTES), ctypes.c_int()

    def seal() -> None:
        for _ in range(_CALLS):
            begun = library.EVP_EncryptInit_ex(context, cipher, None, key, nonce)
            if not begun or not library.EVP_EncryptUpdate(context, sealed, ctypes.byref(length), plain, _BYTES):
                raise RuntimeError("OpenSSL refused to encrypt")

    try:
        case = Case("host_aes_gcm", "GB/s", {"bytes": _BYTES}, lambda: _CALLS * _BYTES / seconds(seal) / 1e9)
        return measure_cases([case], _BUDGET_S, switch)
    finally:
        library.EVP_CIPHER_CTX_free(context)
