exports.main = () => {
  const now = process.hrtime.bigint();
  console.log(`first ${now}`);
};

if (require.main === module) exports.main();
