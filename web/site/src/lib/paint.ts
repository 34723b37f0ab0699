// Numbers to pixels.
import type { Grid } from '../engine/types';

/** Fills the pixels: the one loop over all numbers of a picture. */
export function paint(
  pixels: Uint32Array,
  frameColumns: number,
  grid: Grid,
  colours: Uint32Array,
  diverging: boolean,
  max: number,
  transpose: boolean,
) {
  const { rows, columns, values } = grid;
  const top = colours.length - 1;
  const gain = max > 0 ? (diverging ? top / 2 / max : top / max) : 0;
  const zero = diverging ? top / 2 : 0;
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const at = zero + values[row * columns + column]! * gain;
      const index = at > top ? top : at > 0 ? Math.round(at) : 0;
      // What is not a number stays clear, so that the hatching behind shows.
      pixels[transpose ? column * frameColumns + row : row * frameColumns + column] = Number.isNaN(at) ? 0 : colours[index]!;
    }
  }
}
