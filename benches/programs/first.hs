import GHC.Clock (getMonotonicTimeNSec)

main :: IO ()
main = do
  now <- getMonotonicTimeNSec
  putStrLn ("first " ++ show now)
