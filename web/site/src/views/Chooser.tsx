// Picks architectures, family by family.
import type { ArchInfo } from '../engine/types';
import { archName } from '../lib/names';

export function Chooser({ all, chosen, max, set }: { all: readonly ArchInfo[]; chosen: readonly string[]; max: number; set: (next: string[]) => void }) {
  const families = [...new Set(all.map((a) => a.family))];
  const toggle = (name: string) => set(chosen.includes(name) ? chosen.filter((c) => c !== name) : [...chosen, name]);
  return (
    <div class="chooser">
      {families.map((family) => (
        <fieldset key={family}>
          <legend>{family}</legend>
          {all.filter((a) => a.family === family).map((a) => (
            <label key={a.name} class={chosen.includes(a.name) ? 'chip on' : 'chip'} title={`${a.summary}. ${a.paper}`}>
              <input type="checkbox" value={a.name} checked={chosen.includes(a.name)} disabled={!chosen.includes(a.name) && chosen.length >= max} onChange={() => toggle(a.name)} />
              {archName(a.name)}
            </label>
          ))}
        </fieldset>
      ))}
    </div>
  );
}
