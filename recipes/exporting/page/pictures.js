// From a picture to what the model takes: resized as Pillow and torchvision do, in bytes, and scaled.

const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - x)],
  bicubic: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0)],
};

/** Which pixels each of `to` pixels is made of, and how much of each: the filter is as wide as what is left out. */
function weightsOf(from, to, [radius, filter]) {
  const scale = from / to;
  const stretch = Math.max(1, scale);
  return Array.from({ length: to }, (_, n) => {
    const middle = (n + 0.5) * scale;
    const first = Math.max(0, Math.trunc(middle - radius * stretch + 0.5));
    const last = Math.min(from, Math.trunc(middle + radius * stretch + 0.5));
    const weights = Array.from({ length: last - first }, (_, k) => filter(Math.abs((first + k - middle + 0.5) / stretch)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return [first, weights.map((weight) => weight / total)];
  });
}

/** One axis of an image of bytes `(rows, from, columns, 4)`, brought from `from` to `to`. */
function resizeAxis(source, rows, from, columns, to, filter) {
  if (from === to) return source;
  const target = new Uint8ClampedArray(rows * to * columns * 4); // rounds and clamps what it gets
  const weights = weightsOf(from, to, filter);
  const step = 4 * columns;
  for (let row = 0; row < rows; row++) {
    for (let n = 0; n < to; n++) {
      const [first, shares] = weights[n];
      for (let k = 0; k < step; k++) {
        let sum = 0;
        let place = (row * from + first) * step + k;
        for (const share of shares) {
          sum += share * source[place];
          place += step;
        }
        target[(row * to + n) * step + k] = sum;
      }
    }
  }
  return target;
}

/** `pixel_values` of an `ImageData`, channel by channel. `image` says what size, filter, scale and offset. */
export function pixelsOf(picture, image) {
  const filter = FILTERS[image.filter];
  let bytes = resizeAxis(picture.data, picture.height, picture.width, 1, image.width, filter);
  bytes = resizeAxis(bytes, 1, picture.height, image.width, image.height, filter);
  const size = image.height * image.width;
  const pixels = new Float32Array(3 * size);
  for (let channel = 0; channel < 3; channel++) {
    for (let n = 0; n < size; n++) {
      pixels[channel * size + n] = bytes[4 * n + channel] * image.scale[channel] + image.offset[channel];
    }
  }
  return pixels;
}

/** The pixels of a file as it is shown: turned as its EXIF data ask, on white where it is transparent. */
export async function readPicture(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Error("This file cannot be read as a picture. Choose a PNG, JPEG, GIF or WebP.");
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  try {
    return { canvas, data: context.getImageData(0, 0, canvas.width, canvas.height) };
  } catch {
    throw new Error(`The picture of ${bitmap.width} x ${bitmap.height} pixels is too large for this browser. Choose a smaller one.`);
  }
}
