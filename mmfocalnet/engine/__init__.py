"""What MMEngine's runner uses: hooks, the optimizer constructor, samplers, seeds, strategies."""
