# Image of bids-mllm. From a clone:   docker build --tag bids-mllm .
# For NVIDIA GPUs:                    docker build --build-arg VARIANT=cuda --tag bids-mllm:cuda .
# With the templates in the image:    docker build --build-arg PREFETCH=1 --tag bids-mllm .
# Singularity.def makes the same for Apptainer; both call bin/_image.sh.

FROM debian:bookworm-slim AS system
COPY bin/_image.sh /opt/image/
RUN bash /opt/image/_image.sh system

FROM system AS build
WORKDIR /opt/image
ARG VARIANT=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt pyproject.toml ./
RUN bash _image.sh requirements
ARG PREFETCH=0
COPY LICENSE README.md ./
COPY bids_mllm bids_mllm
RUN bash _image.sh app

FROM system
COPY --from=build /opt/bids-mllm /opt/bids-mllm
COPY --from=build /opt/templateflow /opt/templateflow
COPY --from=build /opt/huggingface /opt/huggingface
ARG VARIANT=cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bids-mllm" \
      org.opencontainers.image.description="BIDS-App: which multimodal language model, instruction and layer predicts which part of each brain" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/bids-mllm/bids-mllm" \
      org.opencontainers.image.vendor="The bids-mllm developers" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
# The root is read-only, the user unknown and his home missing: every cache goes to /tmp, nothing to the image.
ENV PATH="/opt/bids-mllm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    LANG="C.UTF-8" \
    PYTHONNOUSERSITE="1" \
    MPLBACKEND="Agg" \
    NO_ET="1" \
    HF_HUB_OFFLINE="1" \
    HF_HOME="/opt/huggingface" \
    TEMPLATEFLOW_HOME="/opt/templateflow" \
    TEMPLATEFLOW_AUTOUPDATE="0" \
    MPLCONFIGDIR="/tmp/bids-mllm/matplotlib" \
    XDG_CACHE_HOME="/tmp/bids-mllm/cache" \
    NUMBA_CACHE_DIR="/tmp/bids-mllm/numba" \
    TORCHINDUCTOR_CACHE_DIR="/tmp/bids-mllm/torchinductor" \
    TRITON_CACHE_DIR="/tmp/bids-mllm/triton" \
    BIDS_MLLM_CONTAINER="docker" \
    BIDS_MLLM_IMAGE="bids-mllm:${VERSION}-${VARIANT}"
ENTRYPOINT ["bids-mllm"]
CMD ["--help"]
