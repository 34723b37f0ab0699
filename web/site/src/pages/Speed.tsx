export function Speed() { return <h1>Speed</h1>; }
