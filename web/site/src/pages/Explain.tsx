export function Explain() { return <h1>Explain</h1>; }
