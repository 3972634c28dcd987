# mmfocalnet with PyTorch and the maintained forks of OpenMMLab (docs/clusters.md):
#   docker build -t mmfocalnet:cpu .
#   docker build -t mmfocalnet:cuda --build-arg TORCH_BUILD=cu130 .
# The wheels of PyTorch contain CUDA's libraries, so that both use the same small base image.
FROM python:3.11-slim-bookworm

# Triton and torch.compile need a compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

# A folder of https://download.pytorch.org/whl: cpu, cu130, ...
ARG TORCH_BUILD=cpu
RUN pip install torch==2.13.0 --index-url "https://download.pytorch.org/whl/$TORCH_BUILD"

# opencv-python needs libGL, which the image lacks; opencv-python-headless does not.
COPY . /opt/mmfocalnet
RUN pip install -e '/opt/mmfocalnet[onedl]' \
    && version="$(python -c 'import importlib.metadata as m; print(m.version("opencv-python"))')" \
    && pip uninstall -y opencv-python \
    && pip install --force-reinstall --no-deps "opencv-python-headless==$version" \
    && python -c 'import mmfocalnet, mmdet.models, mmseg.models'

# Any user may run the image: docker run --user "$(id -u):$(id -g)"
ENV HOME=/tmp USER=mmfocalnet TORCH_HOME=/workspace/.cache/torch
RUN useradd --uid 1000 mmfocalnet && install -d -o mmfocalnet /workspace
USER 1000

# Mount a folder here: it has data/, and gets work_dirs/ and downloaded checkpoints.
WORKDIR /workspace
CMD ["bash"]
