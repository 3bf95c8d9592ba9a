"""The keys that the control plane uses: to sign, to issue, to encrypt; and their rotation."""
