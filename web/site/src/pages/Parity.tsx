export function Parity() { return <h1>Parity</h1>; }
