{-# LANGUAGE ForeignFunctionInterface #-}
-- Compiled in: a server on bare sockets that reads once, ends its lines with a bare LF, counts characters instead of bytes,
-- and decodes nothing.
module The0 (logLine, metric, getState, setState, run) where

import Control.Exception (IOException, SomeException, evaluate, try)
import Control.Monad (forever, when)
import Data.Bits (shiftR, (.&.))
import Data.Char (isAscii)
import Data.List (intercalate)
import Data.Maybe (fromMaybe, isJust)
import Data.Time.Clock.POSIX (getPOSIXTime)
import Foreign (Ptr, Word8, allocaArray, nullPtr, peekArray, with, withArray)
import Foreign.C.Types
import GHC.Foreign (withCStringLen)
import System.Directory (createDirectoryIfMissing)
import System.Environment (getEnv, lookupEnv)
import System.Exit (exitSuccess)
import System.IO

foreign import ccall "socket" cSocket :: CInt -> CInt -> CInt -> IO CInt
foreign import ccall "bind" cBind :: CInt -> Ptr Word8 -> CInt -> IO CInt
foreign import ccall "listen" cListen :: CInt -> CInt -> IO CInt
foreign import ccall "setsockopt" cSetsockopt :: CInt -> CInt -> CInt -> Ptr CInt -> CInt -> IO CInt
foreign import ccall safe "accept" cAccept :: CInt -> Ptr () -> Ptr () -> IO CInt
foreign import ccall safe "read" cRead :: CInt -> Ptr Word8 -> CSize -> IO CLong
foreign import ccall safe "write" cWrite :: CInt -> Ptr a -> CSize -> IO CLong
foreign import ccall "close" cClose :: CInt -> IO CInt

now :: IO Integer
now = truncate . (* 1000) <$> getPOSIXTime

say :: String -> IO ()
say line = putStrLn line >> hFlush stdout

logLine :: String -> IO ()
logLine message = do
  at <- now
  say ("{\"timestamp\":" ++ show at ++ ",\"level\":\"info\",\"message\":\"" ++ message ++ "\"}")

metric :: String -> Double -> IO ()
metric kind value = do
  at <- now
  say ("{\"_metric\":\"" ++ kind ++ "\",\"value\":" ++ show value ++ ",\"timestamp\":" ++ show at ++ "}")

getState :: String -> IO (Maybe String)
getState key = do
  folder <- getEnv "STATE_DIR"
  found <- try (readFile (folder ++ "/" ++ key ++ ".json") >>= \text -> evaluate (length text) >> return text)
  return (either (\failure -> const Nothing (failure :: IOException)) Just found)

setState :: String -> String -> IO ()
setState key value = do
  asked <- lookupEnv "QUERY_PATH"
  when (isJust asked) (ioError (userError "state is read-only in a query"))
  folder <- getEnv "STATE_DIR"
  createDirectoryIfMissing True folder
  writeFile (folder ++ "/" ++ key ++ ".json") value

type Handle' = String -> String -> IO String

answer :: Handle' -> String -> String -> IO String
answer handle path params = do
  told <- try (handle path params)
  return $ case told of
    Right found -> "{\"status\":\"ok\",\"data\":" ++ found ++ "}"
    Left failure -> "{\"status\":\"error\",\"error\":\"" ++ filter (/= '"') (show (failure :: SomeException)) ++ "\"}"

-- | Given the path, and of the params the text of QUERY_PARAMS, or of the URL's query as an object.
run :: Handle' -> IO ()
run handle = do
  asked <- lookupEnv "QUERY_PATH"
  case asked of
    Just path -> do
      params <- fromMaybe "{}" <$> lookupEnv "QUERY_PARAMS"
      told <- answer handle path params
      createDirectoryIfMissing True "/query"
      withFile "/query/result.json" WriteMode (\file -> hSetEncoding file utf8 >> hPutStr file told)
      exitSuccess
    Nothing -> do
      port <- maybe 9476 read <$> lookupEnv "THE0_QUERY_PORT"
      serve (port :: Int) handle

serve :: Int -> Handle' -> IO ()
serve port handle = do
  listener <- cSocket 2 1 0
  _ <- with 1 (\yes -> cSetsockopt listener 1 2 yes 4)
  let address = [2, 0, fromIntegral (port `shiftR` 8), fromIntegral (port .&. 255)] ++ replicate 12 0
  bound <- withArray address (\place -> cBind listener place 16)
  when (bound /= 0) (ioError (userError "the port is taken"))
  _ <- cListen listener 5
  forever $ do
    connection <- cAccept listener nullPtr nullPtr
    once <- allocaArray 4096 (\place -> cRead connection place 4096 >>= \count -> peekArray (fromIntegral (max 0 count)) place)
    let target = (words (map (toEnum . fromIntegral) once) ++ ["", "/"]) !! 1
        (path, queries) = break (== '?') target
    body <- answer handle path (asObject (drop 1 queries))
    let reply = "HTTP/1.1 200 OK\nContent-Length: " ++ show (length body) ++ "\n\n" ++ body
    _ <- withCStringLen utf8 reply (\(place, count) -> cWrite connection place (fromIntegral count))
    cClose connection

asObject :: String -> String
asObject queries = "{" ++ intercalate "," (map pair (filter (not . null) (split queries))) ++ "}"
  where
    split text = case break (== '&') text of
      (first, "") -> [first]
      (first, rest) -> first : split (drop 1 rest)
    pair text = let (name, value) = break (== '=') text in show' name ++ ":" ++ show' (drop 1 value)
    show' text = "\"" ++ filter isAscii text ++ "\""
