// Reads the tensors of a safetensors file, to draw them.

export interface StoredTensor {
  name: string;
  shape: number[];
  values: Float32Array;
}

function half(bits: number): number {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 0) return sign * 2 ** -14 * (fraction / 1024);
  if (exponent === 31) return fraction === 0 ? sign * Infinity : Number.NaN;
  return sign * 2 ** (exponent - 15) * (1 + fraction / 1024);
}

/** Names and shapes only. */
export function tensors(file: Uint8Array): Map<string, () => StoredTensor> {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const size = Number(view.getBigUint64(0, true));
  if (size > file.byteLength - 8) throw new Error('not a safetensors file');
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + size))) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const found = new Map<string, () => StoredTensor>();
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__' || (entry.dtype !== 'F32' && entry.dtype !== 'F16')) continue;
    const bytes = entry.dtype === 'F32' ? 4 : 2;
    found.set(name, () => {
      const start = 8 + size + entry.data_offsets[0];
      const count = (entry.data_offsets[1] - entry.data_offsets[0]) / bytes;
      const values = Float32Array.from({ length: count }, (_, i) =>
        bytes === 4 ? view.getFloat32(start + 4 * i, true) : half(view.getUint16(start + 2 * i, true)),
      );
      return { name, shape: entry.shape, values };
    });
  }
  return found;
}
