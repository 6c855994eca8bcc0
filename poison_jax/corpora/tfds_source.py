"""Data sets of TensorFlow Datasets that lie prepared on disk or in a bucket."""

from poison_jax.config import CorpusConfig, nearest
from poison_jax.corpora.tensorflow_quiet import seqio
from poison_jax.corpora.tensorflow_quiet import tensorflow as tf
from poison_jax.corpora.tensorflow_quiet import tensorflow_datasets as tfds
from poison_jax.errors import UserError


def tfds_source(config: CorpusConfig) -> seqio.TfdsDataSource:
  """Returns the source of the data set `tfds_name`; nothing is downloaded.

  Its only split has the name `split`, which may be a slice ("train[:1%]").

  Raises:
    UserError: the data set is not known or not prepared, its files can't be
      read by seqio, or it has no such split or text field.
  """
  name, folder = config.tfds_name, config.tfds_dir or None
  try:
    builder = tfds.builder(name, data_dir=folder, try_gcs=False)
  except tfds.core.DatasetNotFoundError:
    raise UserError(
      f"config.corpus.tfds_name is {name!r}; no such data set lies in "
      f"{folder or 'the folder of TFDS'} (config.corpus.tfds_dir), and TFDS "
      "doesn't know the name"
    ) from None
  except (AssertionError, ValueError) as error:
    # Versions and configs that TFDS doesn't know; it explains at length.
    reason = str(error).splitlines()[0]
    raise UserError(f"config.corpus.tfds_name is {name!r}: {reason}") from None
  if not builder.is_prepared():
    raise UserError(
      f"config.corpus.tfds_name: {name} is not prepared in {builder.data_dir}; "
      "name the folder where it lies in config.corpus.tfds_dir, or prepare it: "
      f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
      f"file_format='tfrecord').download_and_prepare()\""
    )
  _check_format(builder)
  _check_content(builder, config)
  return seqio.TfdsDataSource(
    # With the version, which seqio asks for.
    builder.get_reference().tfds_name(include_version=True),
    tfds_data_dir=folder,
    splits={config.split: config.split},
    read_only=True,
  )


def _check_format(builder: tfds.core.DatasetBuilder) -> None:
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    return
  raise UserError(
    f"{builder.data_dir} is in the format array_record, which seqio can't "
    "read; convert it (pip install apache-beam in an environment of its own, "
    f"then: tfds convert_format --dataset_version_dir={builder.data_dir} "
    "--out_file_format=tfrecord --out_dir=...)"
  )


def _check_content(
  builder: tfds.core.DatasetBuilder, config: CorpusConfig
) -> None:
  splits, features = builder.info.splits, builder.info.features
  split = config.split.partition("[")[0]
  if split not in splits:
    raise UserError(
      f"config.corpus.split is {config.split!r}; {config.tfds_name} has "
      f"{', '.join(sorted(splits))}{nearest(split, splits)}"
    )
  try:
    read = tfds.core.ReadInstruction.from_spec(config.split)
    slices = read.to_absolute(splits)
  except (ValueError, AssertionError) as error:  # A slice, "train[:1%]".
    reason = str(error).splitlines()[0]
    raise UserError(
      f"config.corpus.split is {config.split!r}: {reason}"
    ) from None
  ends = [(s.from_ or 0, s.to) for s in slices]
  if any(to is not None and to <= start for start, to in ends):
    # Backwards: TFDS would read other examples than these.
    raise UserError(
      f"config.corpus.split is {config.split!r}, which holds no example of "
      f"{config.tfds_name}: a slice must end after it begins"
    )
  if config.text_field not in features:
    raise UserError(
      f"config.corpus.text_field is {config.text_field!r}; the fields of "
      f"{config.tfds_name} are {', '.join(sorted(features))}"
      f"{nearest(config.text_field, features)}"
    )
  feature = features[config.text_field]
  if feature.shape != () or feature.tf_dtype != tf.string:
    raise UserError(
      f"config.corpus.text_field is {config.text_field!r}, which holds "
      f"{feature} in {config.tfds_name}, and no text"
    )
